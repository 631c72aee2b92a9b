#!lua
-- Give a turn whose lease has run out to another task. Returns the request, or false.
local turn = KEYS[1]
local task, lease = ARGV[1], tonumber(ARGV[2])
--#include ./chat

local known = redis.call('HMGET', turn, 'turn', 'lease', 'request')
if not known[1] or tonumber(known[2]) > clock() then
  return false
end
redis.call('HSET', turn, 'task', task, 'attempt', '', 'state', 'sent', 'lease', clock() + lease)
return known[3]
