#!lua
-- What another store says of a stream that it holds the chunks of.
local meta = KEYS[1]
local stop, closed = tonumber(ARGV[1]), ARGV[2]
-- closed: how it ended; empty while it is open. Returns 1 if there is such a stream.
if redis.call('EXISTS', meta) == 0 then
  return 0
end
redis.call('HSET', meta, 'end', stop)
if closed ~= '' then
  redis.call('HSET', meta, 'closed', closed)
end
return 1
