#!lua flags=allow-oom
-- The attempt ends but the run does not (retry, replacement): nobody's lease is running.
local run, keys = KEYS[1], KEYS[2]
local attempt, base = ARGV[1], ARGV[2]
-- base: what the keys of the run start with.
-- Returns 1 if this attempt's lease was removed, else 0.
--#include tell

local seen = redis.call('HMGET', run, 'attempt', 'state', 'epoch', 'suspended')
if seen[1] == attempt then
  -- Remembered, because a heartbeat sent before may arrive after.
  redis.call('HSET', run, 'suspended', attempt)
  if not seen[2] and seen[4] ~= attempt then
    tell(base, keys, tonumber(seen[3]), 'RETRY')
  end
  return redis.call('HDEL', run, 'lease')
end
return 0
