#!lua
-- A request for the session's agent: start a turn with it, or let it wait for the active one.
local turn, pending, taken, answered, meta, log, keys, out =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local request, channel, id, task = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local lease, retention, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
-- meta, log: of `in`; out: the meta of `out`. most: requests that may wait.
-- Returns {'STARTED', end of out}, {'QUEUED', end of out, is the active turn's worker lost},
-- {'KNOWN', where its turn starts, reply, lost}, {'FULL'} or {'CLOSED'}.
--#include ./chat

if redis.call('HGET', meta, 'closed') then
  return {'CLOSED'}
end
local now = clock()
local known = redis.call('HMGET', turn, 'turn', 'lease', 'message', 'start', 'reply')
local lost = known[1] and tonumber(known[2]) <= now and 1 or 0
local _, reply, message, text = parse(request)
local stop = tonumber(redis.call('HGET', out, 'end') or '0')
if message ~= '' then
  if known[3] == message then
    return {'KNOWN', tonumber(known[4]), known[5], lost}
  end
  for _, read in ipairs(redis.call('LRANGE', taken, 0, -1)) do
    local _, _, its_message = parse(read)
    if its_message == message then -- the running turn answers it with its own
      return {'KNOWN', tonumber(known[4]), known[5], lost}
    end
  end
  for _, waiting in ipairs(redis.call('LRANGE', pending, 0, -1)) do
    local _, its_reply, its_message = parse(waiting)
    if its_message == message then
      return {'KNOWN', stop, its_reply, lost}
    end
  end
  local its_reply, start = answered_before(answered, 'm' .. message)
  if its_reply then
    return {'KNOWN', start, its_reply, lost}
  end
end
if known[1] and redis.call('LLEN', pending) >= most then
  return {'FULL'}
end
append(meta, log, keys, channel, 'in', 1, text, retention)
if known[1] then
  redis.call('RPUSH', pending, request)
  keep(retention, turn, pending)
  return {'QUEUED', stop, lost}
end
begin_turn(turn, id, task, request, stop, now + lease)
keep(retention, turn)
return {'STARTED', stop}
