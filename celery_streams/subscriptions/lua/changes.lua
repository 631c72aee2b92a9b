#!lua
-- Which subscriptions have changed since a version.
local ids, version, since = KEYS[1], KEYS[2], tonumber(ARGV[1])
-- Returns {version, how many there are, those that changed}; all of them if `since` is not of
-- this server's counting.
local number = tonumber(redis.call('GET', version) or 0)
if number == since then
  return {number, redis.call('ZCARD', ids), {}}
end
local low = number < since and '-inf' or '(' .. string.format('%d', since)
return {number, redis.call('ZCARD', ids), redis.call('ZRANGE', ids, low, '+inf', 'BYSCORE')}
