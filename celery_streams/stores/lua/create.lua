#!lua
-- Create one stream as a client describes it, or find that it exists as described.
local meta, log, producers, keys, run = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local staged = KEYS[6] -- the log of a fork's source up to the fork, under a name of its own
local channel, key, has_run, retention = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local identity, content_type = ARGV[5], ARGV[6]
local ttl, expires, expires_ms = ARGV[7], ARGV[8], ARGV[9]
local fork, stop, copied = ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[15])
local close, count, payload = ARGV[12] == '1', tonumber(ARGV[13]), ARGV[14]
-- retention: milliseconds a stream of a run or session is kept; empty for a stream of a client.
-- ttl: seconds. expires: the time as the client spelt it; expires_ms: Unix milliseconds.
-- fork, stop: what it was forked from (empty: nothing) and where its own chunks begin.
-- copied: the staged entries; -1: none, because the stream exists and this only compares.
-- Returns {'CREATED' | 'EXISTS'}, or {reason, detail}.
--#include largest
local function media(text)
  return string.lower(string.match(text, '^%s*([^;%s]*)'))
end

local seen = redis.call('HMGET', meta, 'end', 'closed', 'type', 'ttl', 'expires', 'fork', 'deleted')
if seen[1] then
  local different = seen[7] and 'it was deleted, and forks of it exist'
    or media(seen[3]) ~= media(content_type) and 'its content type is ' .. seen[3]
    or (seen[4] or '') ~= ttl and 'its Stream-TTL is ' .. (seen[4] or 'not set')
    or (seen[5] or '') ~= expires and 'its Stream-Expires-At is ' .. (seen[5] or 'not set')
    or (seen[6] or '') ~= fork and 'it was forked from elsewhere, or not at all'
    or (seen[2] and true or false) ~= close and (seen[2] and 'it is closed' or 'it is open')
  if different then
    return {'CONFLICT', different}
  end
  return {'EXISTS'}
end
if has_run then
  local state = redis.call('HGET', run, 'state')
  if state then
    return {'FINISHED', state}
  end
end

if copied < 0 or (copied > 0 and redis.call('XLEN', staged) ~= copied) then
  return {'UNSTAGED'}
end
redis.call('SPUBLISH', channel, 'o') -- first: a server without sharded channels fails here
redis.call('DEL', log, producers)
if copied > 0 then
  redis.call('RENAME', staged, log)
  redis.call('PERSIST', log)
end
if count > 0 then
  stop = stop + count
  redis.call('XADD', log, string.format('%d-%d', stop, count), 'd', payload)
  count_largest(meta, stop - count, false, payload)
end
redis.call('HSET', meta, 'end', stop, 'type', content_type, 'id', identity)
if ttl ~= '' then
  redis.call('HSET', meta, 'ttl', ttl)
end
if expires ~= '' then
  redis.call('HSET', meta, 'expires', expires)
end
if fork ~= '' then
  redis.call('HSET', meta, 'fork', fork)
end
if close then
  redis.call('HSET', meta, 'closed', 'CLOSED')
end
for _, name in ipairs({meta, log}) do
  if expires ~= '' then
    redis.call('PEXPIREAT', name, expires_ms)
  elseif ttl ~= '' then
    redis.call('EXPIRE', name, ttl)
  elseif retention ~= '' then
    redis.call('PEXPIRE', name, retention)
  end
end
if retention ~= '' then
  redis.call('SADD', keys, key)
  redis.call('PEXPIRE', keys, retention)
end
return {'CREATED'}
