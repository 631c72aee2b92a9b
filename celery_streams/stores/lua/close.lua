#!lua flags=allow-oom
-- End one stream for good, if the caller may.
local meta, log, fence, run = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local grant, channel, state, retention = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local attempt, generation, redelivered = ARGV[5], tonumber(ARGV[6]), ARGV[7] == '1'
-- Returns {'OK', end, state, type, epoch, first entry's id}, or {reason, detail}.
--#include claim
--#include tell

local function ended(stream, how)
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  return {
    'OK', tonumber(stream[1]), how, stream[4],
    tonumber(redis.call('HGET', run, 'epoch') or '0'), oldest and oldest[1] or false,
  }
end

local stream = redis.call('HMGET', meta, 'end', 'closed', 'g/' .. grant, 'type')
if not stream[1] then
  return {'MISSING', ''}
end
if stream[2] then
  return ended(stream, stream[2])
end
local now = redis.call('TIME')
now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
if not stream[3] or tonumber(stream[3]) <= now then
  return {'REJECTED', stream[3] and 'expired' or 'unknown'}
end
local writer = redis.call('HMGET', fence, 'attempt', 'generation', 'epoch', 'a/' .. attempt)
local epoch, claimed = judge(writer, attempt, generation, redelivered)
if not epoch then
  return {'FENCED', writer[3]}
end
if claimed then
  take(fence, attempt, generation, epoch, redelivered)
  redis.call('PEXPIRE', fence, retention)
  if fence == run then
    local base = string.sub(fence, 1, -4) -- a run's own fence is its record, .../run
    tell(base, base .. 'keys', epoch, 'STARTED')
  end
end
redis.call('HSET', meta, 'closed', state)
redis.call('PEXPIRE', meta, retention)
redis.call('PEXPIRE', log, retention)
redis.call('SPUBLISH', channel, 'c' .. stream[1] .. ' ' .. state)
return ended(stream, state)
