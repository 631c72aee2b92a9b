#!lua
-- The broker has the turn's message.
local turn = KEYS[1]
local task, lease, longest = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
-- lease: milliseconds that the message may wait there, doubled each time that it was sent again,
-- longest at most. Returns 1, or 0 if a worker was faster.
--#include ./chat

local known = redis.call('HMGET', turn, 'task', 'state', 'resent')
if known[1] ~= task or known[2] ~= 'sent' then
  return 0
end
local resent = tonumber(known[3] or '0')
redis.call('HSET', turn, 'state', 'queued', 'lease', clock() + math.min(lease * 2 ^ resent, longest))
return 1
