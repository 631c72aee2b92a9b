#!lua
-- Become, or stay, the one process that follows the streams of all subscriptions.
local leader, me, life = KEYS[1], ARGV[1], ARGV[2]
local current = redis.call('GET', leader)
if current and current ~= me then
  return 0
end
redis.call('SET', leader, me, 'PX', life)
return 1
