#!lua
-- Give a turn whose lease has run out to another task. Returns the request, or false.
local turn = KEYS[1]
local task, lease = ARGV[1], tonumber(ARGV[2])
--#include ./chat

local known = redis.call('HMGET', turn, 'turn', 'lease', 'request', 'number')
if not known[1] or tonumber(known[2]) > clock() then
  return false
end
-- base: attempts that other tasks have begun, which the first delivery of this one follows.
redis.call('HSET', turn, 'task', task, 'attempt', '', 'state', 'sent', 'lease', clock() + lease,
  'base', known[4])
return known[3]
