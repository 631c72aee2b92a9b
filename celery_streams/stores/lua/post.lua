#!lua
-- Append what a client of the protocol sends, or end the stream, or both; once for a producer.
local meta, log, producers, forks = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, content_type, count, payload = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local close, stream_seq = ARGV[5] == '1', ARGV[6]
local producer, epoch, seq = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local retention, max_chunks = ARGV[10], tonumber(ARGV[11])
-- producer: empty if none. stream_seq: 's' and the value, empty if none. retention:
-- milliseconds, for streams of runs and sessions; empty: the stream's own lifetime.
-- Returns {'OK' | 'DUPLICATE', end, closed (0 or 1), the producer's last seq}, or {reason, ...}.
--#include largest
local function media(text)
  return string.lower(string.match(text, '^%s*([^;%s]*)'))
end

-- Lua's own comparison follows the server's locale; the protocol wants bytes.
local function after(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x > y
    end
  end
  return #a > #b
end

local stream = redis.call('HMGET', meta, 'end', 'closed', 'type', 'deleted', 'seq', 'closer', 'ttl',
  'largest')
if not stream[1] then
  return {'MISSING', ''}
end
if stream[4] then
  return {'DELETED', ''}
end
local stop = tonumber(stream[1])
local last, known
if producer ~= '' then
  known = redis.call('HGET', producers, producer)
  if known then
    local current, applied = string.match(known, '^(%d+):(%d+)$')
    if epoch < tonumber(current) then
      return {'FENCED', current}
    end
    last = epoch == tonumber(current) and tonumber(applied) or -1
    known = tonumber(current)
  else
    last = -1
  end
end
local mine = producer ~= '' and string.format('%d:%d:', epoch, seq) .. producer
if stream[2] then
  local again = mine and stream[6] == mine or (not mine and close and count == 0)
  if again then
    return {'DUPLICATE', stop, 1, last or 0}
  end
  return {'CLOSED', stop, stream[2]}
end
if count > 0 and media(content_type) ~= media(stream[3]) then
  return {'TYPE', stream[3]}
end
if mine then
  if known and epoch > known and seq ~= 0 then
    return {'EPOCH', ''}
  end
  if seq <= last then
    return {'DUPLICATE', stop, 0, last}
  end
  if seq > last + 1 then
    return {'GAP', last + 1}
  end
end
if stream_seq ~= '' and stream[5] and not after(string.sub(stream_seq, 2), stream[5]) then
  return {'SEQ', stream[5]}
end

local id
if count > 0 then
  stop = stop + count
  id = string.format('%d-%d', stop, count)
  if max_chunks > 0 and stop > max_chunks then
    redis.call('XADD', log, 'MINID', '=', string.format('%d-0', stop - max_chunks + 1), id, 'd',
      payload)
  else
    redis.call('XADD', log, id, 'd', payload)
  end
  redis.call('HSET', meta, 'end', stop)
  count_largest(meta, stop - count, stream[8], payload)
end
if mine then
  redis.call('HSET', producers, producer, string.format('%d:%d', epoch, seq))
end
if stream_seq ~= '' then
  redis.call('HSET', meta, 'seq', string.sub(stream_seq, 2))
end
if close then
  redis.call('HSET', meta, 'closed', 'CLOSED')
  if mine then
    redis.call('HSET', meta, 'closer', mine)
  end
end
if retention ~= '' or stream[7] then
  local life = retention ~= '' and tonumber(retention) or tonumber(stream[7]) * 1000
  for _, name in ipairs({meta, log, producers, forks}) do
    redis.call('PEXPIRE', name, life)
  end
else
  local left = redis.call('PTTL', meta) -- an absolute end, which its other keys share
  if left > 0 then
    redis.call('PEXPIRE', log, left)
    redis.call('PEXPIRE', producers, left)
  end
end
if id then
  redis.call('SPUBLISH', channel, 'e' .. id .. '\n' .. payload)
end
if close then
  redis.call('SPUBLISH', channel, string.format('c%d CLOSED', stop))
end
return {'OK', stop, close and 1 or 0, mine and seq or 0}
