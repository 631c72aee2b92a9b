#!lua
-- The attempt ends and the turn goes on with a message that is on its way (a retry).
local turn = KEYS[1]
local attempt, lease = ARGV[1], tonumber(ARGV[2])
-- lease: milliseconds until somebody else may take the turn over. Returns 0 or 1.
--#include ./chat

if redis.call('HGET', turn, 'attempt') ~= attempt then
  return 0
end
redis.call('HSET', turn, 'attempt', '', 'state', 'suspended', 'lease', clock() + lease)
return 1
