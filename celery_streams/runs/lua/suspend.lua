#!lua flags=allow-oom
-- The attempt ends but the run does not (retry, replacement): nobody's lease is running.
local run = KEYS[1]
local attempt = ARGV[1]
-- Returns 1 if this attempt's lease was removed, else 0.
if redis.call('HGET', run, 'attempt') == attempt then
  -- Remembered, because a heartbeat sent before may arrive after.
  redis.call('HSET', run, 'suspended', attempt)
  return redis.call('HDEL', run, 'lease')
end
return 0
