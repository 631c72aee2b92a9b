#!lua
-- A worker begins an attempt of a turn, if the turn is its task's.
local turn, taken, history, answered, meta, log, keys, fence =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local task, attempt, first, channel = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local lease, retention, request, id = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], ARGV[8]
-- meta, log: of `out`. request: of a task that somebody has called directly, else empty.
-- Returns {'OK', turn, reply, number, epoch, stop (0 or 1), request, history or false, what it
-- took from the pending requests}, {'STALE'} or {'BUSY', turn}.
--#include claim
--#include ./chat

local known = redis.call('HMGET', turn, 'turn', 'task', 'number', 'last', 'reply', 'stop', 'request',
  'base', 'attempt', 'epoch')
local now = clock()
if known[2] == task and known[9] == attempt then -- it has begun, and did not hear of it
  return {'OK', known[1], known[5], tonumber(known[3]), tonumber(known[10]), known[6] and 1 or 0,
    known[7], redis.call('GET', history), redis.call('LRANGE', taken, 0, -1)}
end
if known[2] ~= task then
  if request == '' or known[4] == task or answered_before(answered, 't' .. task) then
    return {'STALE'}
  end
  if known[1] then
    return {'BUSY', known[1]}
  end
  begin_turn(turn, id, task, request, tonumber(redis.call('HGET', meta, 'end') or '0'), now)
  known = redis.call('HMGET', turn, 'turn', 'task', 'number', 'last', 'reply', 'stop', 'request')
elseif first and tonumber(known[3]) > tonumber(known[8] or '0') then
  return {'STALE'} -- a first delivery that was frozen while its successor began
end

local number = redis.call('HINCRBY', turn, 'number', 1)
local epoch = redis.call('HINCRBY', turn, 'epoch', 1)
redis.call('HSET', turn, 'attempt', attempt, 'state', 'running', 'lease', now + lease)
local held = tonumber(redis.call('HGET', fence, 'epoch') or '0')
-- Whoever wrote before has an older generation, and needs no entry of its own to be refused.
redis.call('DEL', fence)
take(fence, attempt, epoch, held + 1, true)
keep(retention, turn, history, taken, fence)
append(meta, log, keys, channel, 'out', 2, string.format('{"type":"start","messageId":%s}\n%s',
  cjson.encode(known[5]), number == 1 and '{"type":"start-step"}' or '{"type":"reset-step"}'),
  retention)
return {'OK', known[1], known[5], number, epoch, known[6] and 1 or 0, known[7],
  redis.call('GET', history), redis.call('LRANGE', taken, 0, -1)}
