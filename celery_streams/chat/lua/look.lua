#!lua flags=no-writes
-- The session now. Returns {turn, task, agent, reply, start, request, lost, history, pending,
-- taken, number, resent}; the first seven are false without an active turn.
local turn, pending, taken, history = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
--#include ./chat

local known = redis.call('HMGET', turn, 'turn', 'task', 'agent', 'reply', 'start', 'request', 'lease',
  'number', 'resent')
if not known[1] then
  known = {false, false, false, false, false, false, false, false, false}
end
return {known[1], known[2], known[3], known[4], known[5] and tonumber(known[5]), known[6],
  known[7] and (tonumber(known[7]) <= clock() and 1 or 0), redis.call('GET', history),
  redis.call('LRANGE', pending, 0, -1), redis.call('LRANGE', taken, 0, -1),
  known[8] and tonumber(known[8]), known[9] and tonumber(known[9])}
