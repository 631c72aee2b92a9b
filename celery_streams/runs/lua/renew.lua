#!lua
-- A sign of life from the attempt that holds the run's fence.
local run, keys = KEYS[1], KEYS[2]
local attempt, lease, retention = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local base = ARGV[4]
-- base: what the keys of the run start with; its streams' keys are derived from it.
-- Returns 1 if renewed (or the run has no record yet, or is suspended), 0 if another attempt
-- holds the fence.
--#include tell

local seen = redis.call('HMGET', run, 'attempt', 'state', 'suspended', 'lease', 'epoch')
if not seen[1] or seen[2] then
  return 1
end
if seen[1] ~= attempt then
  return 0
end
if seen[3] == attempt then
  return 1
end
local now = redis.call('TIME')
now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call('HSET', run, 'lease', now + lease)
if seen[4] and tonumber(seen[4]) <= now then
  tell(base, keys, tonumber(seen[5]), 'STARTED') -- it was taken for stalled
end
redis.call('PEXPIRE', run, retention)
-- While the run lives, so do its streams, however long it is silent.
if redis.call('PTTL', keys) < retention - retention / 20 then
  redis.call('PEXPIRE', keys, retention)
  for _, key in ipairs(redis.call('SMEMBERS', keys)) do
    redis.call('PEXPIRE', base .. 'meta/' .. key, retention)
    redis.call('PEXPIRE', base .. 'log/' .. key, retention)
  end
end
return 1
