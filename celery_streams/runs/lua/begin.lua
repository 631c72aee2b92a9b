#!lua
-- A later attempt enters its run: it takes the run's fence before it writes.
local run, keys = KEYS[1], KEYS[2]
local attempt, generation, redelivered = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local retention, lease, base = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
-- base: what the keys of the run start with.
-- Returns {'OK', epoch}, or {reason, detail}.
--#include claim
--#include tell

local state = redis.call('HGET', run, 'state')
if state then
  return {'FINISHED', state}
end
local writer = redis.call('HMGET', run, 'attempt', 'generation', 'epoch', 'a/' .. attempt)
local epoch, claimed = judge(writer, attempt, generation, redelivered)
if not epoch then
  return {'FENCED', writer[3]}
end
if claimed then
  local now = redis.call('TIME')
  now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
  take(run, attempt, generation, epoch, redelivered)
  redis.call('HSET', run, 'lease', now + lease)
  redis.call('PEXPIRE', run, retention)
  tell(base, keys, epoch, 'STARTED')
end
return {'OK', epoch}
