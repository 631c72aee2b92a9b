#!lua flags=allow-oom
-- Forks are gone; if they were the last, what was kept of a deleted source goes, too.
local meta, forks = KEYS[1], KEYS[2]
-- ARGV: the forks.
-- Returns {'KEPT'}, or {'GONE', what the source was forked from (empty: nothing), its identity}.
redis.call('SREM', forks, unpack(ARGV))
local stream = redis.call('HMGET', meta, 'deleted', 'fork', 'id')
if not stream[1] or redis.call('SCARD', forks) > 0 then
  return {'KEPT'}
end
redis.call('DEL', meta, forks)
return {'GONE', stream[2] or '', stream[3] or ''}
