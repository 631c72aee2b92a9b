#!lua
-- Delete a string only if it still has the value the caller saw. The fallback for servers
-- without DELIFEQ (Valkey 9) or DELEX ... IFEQ (Redis 8.4).
--   KEYS[1]  the string
--   ARGV[1]  the value it must have
-- Returns 1 if it was deleted, else 0.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
