#!lua
-- Install new credentials, let go of the lock and hand them to those who wait: only while
-- the caller still holds the lock.
local cached, lock = KEYS[1], KEYS[2]
local token, value, life, wake = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
-- life: milliseconds.
-- Returns 1, or 0 if the lease had run out (nothing is changed then).
if redis.call('GET', lock) ~= token then
  return 0
end
redis.call('SET', cached, value, 'PX', life)
redis.call('DEL', lock)
redis.call('SPUBLISH', wake, value)
return 1
