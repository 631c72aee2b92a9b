#!lua
-- A sign of life from the attempt that holds the run's fence.
local run = KEYS[1]
local attempt, lease, retention = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
-- Returns 1 if renewed (or the run has no record yet, or is suspended), 0 if another attempt holds the fence.
local seen = redis.call('HMGET', run, 'attempt', 'state', 'suspended')
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
redis.call('PEXPIRE', run, retention)
return 1
