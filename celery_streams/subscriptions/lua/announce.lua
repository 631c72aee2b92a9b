#!lua
-- Tell every process that a subscription was created, changed or deleted.
local ids, version, channel = KEYS[1], KEYS[2], ARGV[1]
local id, exists = ARGV[2], ARGV[3] == '1'
redis.call('SPUBLISH', channel, 'o')
local number = redis.call('INCR', version)
if exists then
  redis.call('ZADD', ids, number, id)
else
  redis.call('ZREM', ids, id)
end
return number
