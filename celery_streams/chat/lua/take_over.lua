#!lua
-- Send a turn again whose lease has run out. Returns {its task from now on, the request}, or false.
local turn = KEYS[1]
local task, lease = ARGV[1], tonumber(ARGV[2])
--#include ./chat

local known = redis.call('HMGET', turn, 'turn', 'lease', 'request', 'number', 'state', 'task')
if not known[1] or tonumber(known[2]) > clock() then
  return false
end
if known[5] == 'sent' or known[5] == 'queued' then
  -- Nobody has begun: the broker may have lost the message, or be busy. The same once more keeps its
  -- place, and of two that arrive one is too late.
  redis.call('HINCRBY', turn, 'resent', 1)
  redis.call('HSET', turn, 'state', 'sent', 'lease', clock() + lease)
  return {known[6], known[3]}
end
-- base: attempts that other tasks have begun, which the first delivery of this one follows.
redis.call('HSET', turn, 'task', task, 'attempt', '', 'state', 'sent', 'lease', clock() + lease,
  'base', known[4])
redis.call('HDEL', turn, 'resent')
return {task, known[3]}
