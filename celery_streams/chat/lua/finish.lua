#!lua
-- End a turn: its last chunks, the snapshot, the trim, and the next turn, in one step.
local turn, pending, taken, history, starts, branches, branch, answered =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local meta, log, keys = KEYS[9], KEYS[10], KEYS[11]
local task, attempt, channel, snapshot = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local count, payload, id, next_task = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
local lease, retention, kept = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local left, about, continued, most = ARGV[12], ARGV[13], ARGV[14], tonumber(ARGV[15])
-- attempt: empty for whoever ends the turn of a worker that cannot (and names its task).
-- kept: turns whose chunks stay in `out`. starts: where they begin.
-- left, about: the branch that the turn leaves, and what is listed of it; empty if it leaves none.
-- continued: a branch that is none any more, or empty. most: branches that are kept.
-- answered: names of what the last turns have answered, for whatever comes again.
-- Returns {'LOST'}, {'OK'} or {'NEXT', request of the turn that has begun}; the same again for
-- whoever asks again, not having heard.
--#include ./chat

-- Names that are remembered: a hundred turns without messages read from the inbox.
local REMEMBERED = 200

local function forget(name)
  redis.call('ZREM', branches, name)
  redis.call('HDEL', branch, name, name .. '/about')
end

local known = redis.call('HMGET', turn, 'task', 'attempt', 'start', 'last', 'ended', 'request',
  'turn', 'reply')

local function remember(name)
  redis.call('RPUSH', answered, string.format('%s\n%s\n%s', name, known[8], known[3]))
end

if known[4] == task and known[5] == attempt then
  if known[1] == next_task then
    return {'NEXT', known[6]}
  end
  return {'OK'}
end
if known[1] ~= task or (attempt ~= '' and known[2] ~= attempt) then
  return {'LOST'}
end
local stop = append(meta, log, keys, channel, 'out', count, payload, retention)
redis.call('SET', history, snapshot, 'PX', retention)
if continued ~= '' then
  forget(continued)
end
if left ~= '' then
  redis.call('HSET', branch, known[7], left, known[7] .. '/about', about)
  redis.call('ZADD', branches, clock(), known[7])
end
for _, name in ipairs(redis.call('ZRANGE', branches, 0, -1 - most)) do
  forget(name)
end
local more = redis.call('RPUSH', starts, known[3]) - kept
if more > 0 then
  redis.call('LTRIM', starts, more, -1)
  local first = tonumber(redis.call('LINDEX', starts, 0))
  redis.call('XTRIM', log, 'MINID', '=', string.format('%d-0', first + 1))
end
redis.call('HDEL', turn, 'turn', 'task', 'attempt', 'stop', 'state', 'lease', 'request')
redis.call('HSET', turn, 'last', task, 'ended', attempt)
remember('t' .. task)
for _, request in ipairs({known[6], unpack(redis.call('LRANGE', taken, 0, -1))}) do
  local _, _, message = parse(request)
  if message ~= '' then
    remember('m' .. message)
  end
end
redis.call('LTRIM', answered, -REMEMBERED, -1)
redis.call('DEL', taken)
keep(retention, turn, pending, starts, branches, branch, answered)
local request = redis.call('LPOP', pending)
if not request then
  return {'OK'}
end
begin_turn(turn, id, next_task, request, stop, clock() + lease)
return {'NEXT', request}
