#!lua
-- The running turn reads the messages that wait, up to one that is no plain message. Returns all that it has read so far (it may not
-- have heard of the last ones), or false if it is not its own.
local turn, pending, taken, meta, log, keys = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local attempt, channel, retention = ARGV[1], ARGV[2], tonumber(ARGV[3])
-- meta, log: of `out`, where whoever waits for these answers hears which turn has them.
--#include ./chat

if redis.call('HGET', turn, 'attempt') ~= attempt then
  return false
end
-- An edit, a regenerate, a tool's output and what is said in a branch are for turns of their own.
local function is_plain(request)
  local _, _, _, content = parse(request)
  local read, values = pcall(cjson.decode, content)
  return read and values.trigger == 'submit-message' and values.messageId == cjson.null
    and (values.branch or cjson.null) == cjson.null and values.message ~= cjson.null
    and values.message.role == 'user'
end

local requests = {}
for _, request in ipairs(redis.call('LRANGE', pending, 0, -1)) do
  if not is_plain(request) then
    break
  end
  requests[#requests + 1] = request
end
if #requests == 0 then
  return redis.call('LRANGE', taken, 0, -1)
end
redis.call('LTRIM', pending, #requests, -1)
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
return redis.call('LRANGE', taken, 0, -1)
