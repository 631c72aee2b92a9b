#!lua
-- Register a stream on its run or session, and mint a grant to write to it.
local meta, keys, run = KEYS[1], KEYS[2], KEYS[3]
local channel, key, grant = ARGV[1], ARGV[2], ARGV[3]
local life, retention, content_type = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local has_run = ARGV[7] == '1'
-- grant: empty if the chunks are elsewhere, where others mint. life, retention: milliseconds.
-- has_run: `run` is the record of the run the stream belongs to.
-- Returns {'OK'}, {'FINISHED', state} or {'TYPE', the type it has}.

-- First of all, because it wakes readers that wait for the stream to exist, and because a
-- server without sharded channels must fail here, before anything is written.
redis.call('SPUBLISH', channel, 'o')

if has_run then
  local state = redis.call('HGET', run, 'state')
  if state then
    return {'FINISHED', state}
  end
end
local existing = redis.call('HGET', meta, 'type')
if existing and existing ~= content_type then
  return {'TYPE', existing}
end

local now = redis.call('TIME')
now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)

-- A random sample of the fields: bounded work however many grants there are, and each mint
-- removes more of them than it adds.
local sample = redis.call('HRANDFIELD', meta, 32, 'WITHVALUES')
for i = 1, #sample, 2 do
  if string.sub(sample[i], 1, 2) == 'g/' and tonumber(sample[i + 1]) <= now then
    redis.call('HDEL', meta, sample[i])
  end
end

redis.call('SADD', keys, key)
redis.call('HSETNX', meta, 'end', 0)
redis.call('HSETNX', meta, 'type', content_type)
if grant ~= '' then
  redis.call('HSET', meta, 'g/' .. grant, string.format('%d', now + life))
end
local kept = math.max(retention, life)
redis.call('PEXPIRE', keys, kept)
redis.call('PEXPIRE', meta, kept)
return {'OK'}
