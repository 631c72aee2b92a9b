#!lua
-- Copy some entries of a fork's source, with an expiry from the first one on.
local staged = KEYS[1]
local expiry = ARGV[1]
-- expiry: milliseconds. Further ARGV: id and payload of each entry. Returns how many there are.
for i = 2, #ARGV, 2 do
  redis.call('XADD', staged, ARGV[i], 'd', ARGV[i + 1])
end
redis.call('PEXPIRE', staged, expiry)
return redis.call('XLEN', staged)
