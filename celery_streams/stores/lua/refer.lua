#!lua
-- A fork is about to be made: remember it at its source, so that the source's name is kept.
local meta, log, forks = KEYS[1], KEYS[2], KEYS[3]
local fork, offset = ARGV[1], ARGV[2]
-- fork: the stream that will refer to this one. offset: where it leaves; empty: at the end.
-- Returns {'OK', offset, end, type, ttl, expires, identity}, or {reason, detail}.
local stream = redis.call('HMGET', meta, 'end', 'type', 'ttl', 'expires', 'deleted', 'id')
if not stream[1] then
  return {'MISSING', ''}
end
if stream[5] then
  return {'DELETED', ''}
end
if offset ~= '' and tonumber(offset) > tonumber(stream[1]) then
  return {'BEYOND', stream[1]}
end
redis.call('SADD', forks, fork)
local left = redis.call('PTTL', meta)
if left > 0 then
  redis.call('PEXPIRE', forks, left)
end
return {
  'OK', tonumber(offset ~= '' and offset or stream[1]), tonumber(stream[1]), stream[2],
  stream[3] or '', stream[4] or '', stream[6] or '',
}
