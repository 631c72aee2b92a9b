#!lua
-- The broker has the turn's message.
local turn = KEYS[1]
local task, lease = ARGV[1], tonumber(ARGV[2])
-- lease: milliseconds that the message may wait there. Returns 1, or 0 if a worker was faster.
--#include ./chat

local known = redis.call('HMGET', turn, 'task', 'state')
if known[1] ~= task or known[2] ~= 'sent' then
  return 0
end
redis.call('HSET', turn, 'state', 'queued', 'lease', clock() + lease)
return 1
