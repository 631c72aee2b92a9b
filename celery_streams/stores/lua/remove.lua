#!lua flags=allow-oom
-- Delete one stream; its name stays taken while forks refer to it.
local meta, log, producers, forks, keys = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local key, channel = ARGV[1], ARGV[2]
-- Returns {'GONE', what it was forked from (empty: nothing), its identity}, {'KEPT'} while it has
-- forks, or {reason, detail}.
local stream = redis.call('HMGET', meta, 'end', 'deleted', 'fork', 'id')
if not stream[1] then
  return {'MISSING', ''}
end
if stream[2] then
  return {'DELETED', ''}
end
redis.call('DEL', log, producers)
redis.call('SREM', keys, key)
redis.call('SPUBLISH', channel, 'd')
if redis.call('SCARD', forks) > 0 then
  redis.call('HSET', meta, 'deleted', 1)
  redis.call('PERSIST', meta)
  redis.call('PERSIST', forks)
  return {'KEPT'}
end
redis.call('DEL', meta, forks)
return {'GONE', stream[3] or '', stream[4] or ''}
