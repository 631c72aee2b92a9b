#!lua
-- Ask the active turn to stop. Returns {turn or false, is its worker lost (0 or 1)}.
local turn = KEYS[1]
local channel = ARGV[1]
--#include ./chat

local known = redis.call('HMGET', turn, 'turn', 'lease')
if not known[1] then
  return {false, 0}
end
redis.call('HSET', turn, 'stop', 1)
redis.call('PUBLISH', channel, known[1])
return {known[1], tonumber(known[2]) <= clock() and 1 or 0}
