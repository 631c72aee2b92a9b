#!lua
-- Let go of the lock with nothing to hand on; one of those who wait takes over at once.
local lock = KEYS[1]
local token, wake = ARGV[1], ARGV[2]
-- Returns 1, or 0 if the caller did not hold it any more.
if redis.call('GET', lock) ~= token then
  return 0
end
redis.call('DEL', lock)
redis.call('SPUBLISH', wake, '')
return 1
