#!lua flags=allow-oom
-- The run has ended: record how, and close every stream registered on it.
local run, keys = KEYS[1], KEYS[2]
local state, base, retention = ARGV[1], ARGV[2], tonumber(ARGV[3])
local attempt, generation, redelivered = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
local always, only_lost = ARGV[7] == '1', ARGV[8] == '1'
local patience = tonumber(ARGV[9])
-- attempt is empty when somebody ends the run on behalf of its worker, or '@' and a process when
-- it is known which process of the worker has ended. always: leave a record even if the run has
-- none, so that no stream can be opened later. only_lost: only if the lease of the run's attempt
-- has run out. patience: milliseconds in which a living attempt renews its lease.
-- Returns {'OK' | 'ALREADY' | 'NONE' | 'ALIVE' | 'SUPERSEDED', state}.
-- The streams' keys are derived from `base`: same hash tag, known only to the keys set.
--#include claim

-- Whether somebody who speaks for an ended process speaks of another attempt than the run's.
-- Attempts of one generation are told apart by their processes, where those are known.
local function superseded(seen, ended)
  local newest = tonumber(seen[2] or '-1')
  if newest ~= generation then
    return newest > generation
  end
  local process = ended and string.match(seen[1], '@(.+)$')
  if process then
    return process ~= ended and seen[8] ~= seen[1]
  end
  return seen[7] == '1' and not redelivered
end

local seen = redis.call('HMGET', run, 'attempt', 'generation', 'epoch', 'a/' .. attempt, 'state',
  'lease', 'redelivered', 'suspended')
if seen[5] then
  return {'ALREADY', seen[5]}
end
local registered = redis.call('SMEMBERS', keys)
if not always and not seen[1] and #registered == 0 then
  return {'NONE', ''}
end
local now = redis.call('TIME')
now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local ended = string.match(attempt, '^@(.+)$')
if only_lost then
  if not seen[6] or tonumber(seen[6]) > now then
    return {'ALIVE', ''}
  end
elseif attempt == '' or ended then
  if superseded(seen, ended) then
    if ended and seen[6] and tonumber(seen[6]) > now + patience then
      -- The ended process may have been the last one, and no message comes back: if the
      -- attempt on record is dead, too, its lease need not outlive a broker's patience.
      redis.call('HSET', run, 'lease', now + patience)
    end
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
