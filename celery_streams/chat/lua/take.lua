#!lua
-- The running turn reads the requests that wait. Returns them, or false if it is not its own.
local turn, pending, taken, meta, log, keys = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local attempt, channel, retention = ARGV[1], ARGV[2], tonumber(ARGV[3])
-- meta, log: of `out`, where whoever waits for these answers hears which turn has them.
--#include ./chat

if redis.call('HGET', turn, 'attempt') ~= attempt then
  return false
end
local requests = redis.call('LRANGE', pending, 0, -1)
if #requests == 0 then
  return requests
end
redis.call('DEL', pending)
redis.call('RPUSH', taken, unpack(requests))
keep(retention, taken)
local replies = {}
for place, request in ipairs(requests) do
  local _, reply = parse(request)
  replies[place] = cjson.encode(reply)
end
append(meta, log, keys, channel, 'out', 1, string.format(
  '{"type":"data-inbox","transient":true,"data":{"taken":[%s]}}', table.concat(replies, ',')),
  retention)
return requests
