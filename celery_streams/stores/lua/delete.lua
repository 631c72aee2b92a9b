#!lua flags=allow-oom
-- Remove one stream and its chunks; readers of it are told.
local meta, log, keys = KEYS[1], KEYS[2], KEYS[3]
local key, channel = ARGV[1], ARGV[2]
-- Returns 1 if there was such a stream, else 0.
redis.call('SREM', keys, key)
local existed = redis.call('DEL', meta)
redis.call('DEL', log)
if existed == 1 then
  redis.call('SPUBLISH', channel, 'd')
end
return existed
