#!lua flags=allow-oom
-- The run has ended: record how, and close every stream registered on it.
local run, keys = KEYS[1], KEYS[2]
local state, base, retention = ARGV[1], ARGV[2], tonumber(ARGV[3])
local attempt, generation, redelivered = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
local always, only_lost = ARGV[7] == '1', ARGV[8] == '1'
-- attempt is empty when somebody ends the run on behalf of its worker. always: leave a record
-- even if the run has none, so that no stream can be opened later. only_lost: only if the
-- lease of the run's attempt has run out.
-- Returns {'OK' | 'ALREADY' | 'NONE' | 'ALIVE' | 'SUPERSEDED', state}.
-- The streams' keys are derived from `base`: same hash tag, known only to the keys set.
--#include claim

local seen = redis.call('HMGET', run, 'attempt', 'generation', 'epoch', 'a/' .. attempt, 'state',
  'lease', 'redelivered')
if seen[5] then
  return {'ALREADY', seen[5]}
end
local registered = redis.call('SMEMBERS', keys)
if not always and not seen[1] and #registered == 0 then
  return {'NONE', ''}
end
if only_lost then
  local now = redis.call('TIME')
  now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
  if not seen[6] or tonumber(seen[6]) > now then
    return {'ALIVE', ''}
  end
elseif attempt == '' then
  local newest = tonumber(seen[2] or '-1')
  if newest > generation or (newest == generation and seen[7] == '1' and not redelivered) then
    return {'SUPERSEDED', ''}
  end
elseif not judge(seen, attempt, generation, redelivered) then
  return {'SUPERSEDED', ''}
end

redis.call('HSET', run, 'state', state)
redis.call('HDEL', run, 'lease', 'redelivered')
redis.call('PEXPIRE', run, retention)
redis.call('PEXPIRE', keys, retention)
local awaited = true
for _, key in ipairs(registered) do
  awaited = awaited and key ~= 'default'
  -- Nobody can initialize again, so nothing newer can be removed here.
  redis.call('DEL', base .. 'cred/' .. key)
  local meta = base .. 'meta/' .. key
  local stream = redis.call('HMGET', meta, 'end', 'closed')
  if stream[1] and not stream[2] then
    redis.call('HSET', meta, 'closed', state)
    redis.call('PEXPIRE', meta, retention)
    redis.call('PEXPIRE', base .. 'log/' .. key, retention)
    redis.call('SPUBLISH', base .. 'live/' .. key, 'c' .. stream[1] .. ' ' .. state)
  end
end
if awaited then
  -- Somebody may wait for the stream that most runs have.
  redis.call('SPUBLISH', base .. 'live/default', 'c0 ' .. state)
end
return {'OK', state}
