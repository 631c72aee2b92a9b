#!lua
-- Note in the index that a stream has been opened (now).
local index = KEYS[1]
local member, life = ARGV[1], ARGV[2]
-- life: milliseconds the index is kept after its last stream was opened; empty: for ever.
redis.call('SPUBLISH', index, member) -- first: a server without sharded channels fails here
local now = redis.call('TIME')
now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call('ZADD', index, 'GT', now, member)
if life ~= '' then
  redis.call('PEXPIRE', index, life)
end
return now
