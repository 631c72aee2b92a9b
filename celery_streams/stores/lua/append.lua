#!lua
-- Append one batch, exactly once, if the writer may.
local meta, log, fence = KEYS[1], KEYS[2], KEYS[3]
local grant, channel = ARGV[1], ARGV[2]
local producer, seq, count, payload = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local attempt, generation, redelivered = ARGV[7], tonumber(ARGV[8]), ARGV[9] == '1'
local retention, max_chunks, lease = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local content_type = ARGV[13] -- what the stream must be; empty: anything
-- Returns {'OK' | 'DUPLICATE', offset, end, epoch}, or {reason, detail}.
--#include claim
--#include tell
--#include largest

local writer = redis.call('HMGET', fence, 'attempt', 'generation', 'epoch', 'a/' .. attempt,
  'p/' .. producer, 'touched')
local applied = -1
if writer[5] then
  local last, first, stop = string.match(writer[5], '^(%d+):(%d+):(%d+)$')
  applied = tonumber(last)
  if seq == applied then
    -- A write, so that WAIT after a resend waits for replicas to have the batch, too.
    redis.call('PEXPIRE', fence, retention)
    return {'DUPLICATE', tonumber(first), tonumber(stop), tonumber(writer[4] or writer[3])}
  end
end

local stream = redis.call('HMGET', meta, 'end', 'closed', 'g/' .. grant, 'touched', 'type',
  'largest')
if stream[2] then
  return {'CLOSED', stream[2]}
end
local now = redis.call('TIME')
now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
if not stream[1] or not stream[3] or tonumber(stream[3]) <= now then
  return {'REJECTED', stream[3] and 'expired' or 'unknown'}
end
if content_type ~= '' and stream[5] ~= content_type then
  return {'TYPE', stream[5]}
end
local epoch, claimed = judge(writer, attempt, generation, redelivered)
if not epoch then
  return {'FENCED', writer[3]}
end
if seq ~= applied + 1 then
  return {'GAP', applied + 1}
end

local offset = tonumber(stream[1])
local stop = offset + count
local id = string.format('%d-%d', stop, count)
if max_chunks > 0 and stop > max_chunks then
  redis.call('XADD', log, 'MINID', '=', string.format('%d-0', stop - max_chunks + 1), id, 'd',
    payload)
else
  redis.call('XADD', log, id, 'd', payload)
end
redis.call('HSET', meta, 'end', stop)
count_largest(meta, offset, stream[6], payload)
if claimed then
  take(fence, attempt, generation, epoch, redelivered)
  if lease > 0 then
    redis.call('HSET', fence, 'lease', now + lease)
    local base = string.sub(fence, 1, -4) -- a run's own fence is its record, .../run
    tell(base, base .. 'keys', epoch, 'STARTED')
  end
end
redis.call('HSET', fence, 'p/' .. producer, string.format('%d:%d:%d', seq, offset, stop))
-- The expiries are renewed now and then, not each time: with a margin, so that nothing goes
-- before its time. A stream has many fences, and a run's fence many streams: each keeps its own.
local margin = math.ceil(retention / 20)
local due = now - margin
if not stream[4] or tonumber(stream[4]) <= due or not writer[6] or tonumber(writer[6]) <= due then
  redis.call('HSET', meta, 'touched', now)
  redis.call('HSET', fence, 'touched', now)
  redis.call('PEXPIRE', meta, retention + margin)
  redis.call('PEXPIRE', log, retention + margin)
  redis.call('PEXPIRE', fence, retention + margin)
end
redis.call('SPUBLISH', channel, 'e' .. id .. '\n' .. payload)
return {'OK', offset, stop, epoch}
