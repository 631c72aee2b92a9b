#!lua
-- The attempt lives. Returns {is the turn its own, is it to stop} (0 or 1).
local turn = KEYS[1]
local attempt, lease, retention = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
-- lease: 0 only asks. retention: milliseconds.
--#include ./chat

local known = redis.call('HMGET', turn, 'attempt', 'stop')
if known[1] ~= attempt then
  return {0, 0}
end
if lease > 0 then
  redis.call('HSET', turn, 'lease', clock() + lease)
  keep(retention, turn, unpack(KEYS, 2))
end
return {1, known[2] and 1 or 0}
