#!lua
-- Find a slot's cached credentials; if there are none, take the slot's lock. In one step, so
-- that nobody can install credentials between the look and the lock.
local cached, lock = KEYS[1], KEYS[2]
local token, lease, ignored = ARGV[1], ARGV[2], ARGV[3]
-- lease: milliseconds. ignored: a value the caller has seen and cannot use.
-- Returns {'FOUND', value}, {'LOCKED'} or {'HELD', milliseconds the other holder has left}.
local value = redis.call('GET', cached)
if value and value ~= ignored then
  return {'FOUND', value}
end
if redis.call('SET', lock, token, 'NX', 'PX', lease) then
  return {'LOCKED'}
end
return {'HELD', redis.call('PTTL', lock)}
