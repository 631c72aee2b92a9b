#!lua
-- Ask the active turn to stop. Returns {turn or false, is its worker lost (0 or 1)}.
local turn = KEYS[1]
local channel, name = ARGV[1], ARGV[2]
-- name: the turn that is meant, by its id or its response message's; empty: whichever is active.
-- A stop that comes when its turn is over does nothing to the next one.
--#include ./chat

local known = redis.call('HMGET', turn, 'turn', 'lease', 'reply')
if not known[1] or (name ~= '' and name ~= known[1] and name ~= known[3]) then
  return {false, 0}
end
redis.call('HSET', turn, 'stop', 1)
redis.call('PUBLISH', channel, known[1])
return {known[1], tonumber(known[2]) <= clock() and 1 or 0}
