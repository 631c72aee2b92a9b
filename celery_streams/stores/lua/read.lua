#!lua flags=no-writes
-- Entries that hold chunks from an offset on, and the head at the same moment.
local meta, log, run = KEYS[1], KEYS[2], KEYS[3]
local offset, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
-- Returns {} (no such stream) or {end, closed, type, epoch, first entry's id, entries}.
local stream = redis.call('HMGET', meta, 'end', 'closed', 'type')
if not stream[1] then
  return {}
end
local entries = {}
if limit > 0 and offset < tonumber(stream[1]) then
  entries = redis.call('XRANGE', log, string.format('%d-0', offset + 1), '+', 'COUNT', limit)
end
local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
return {
  tonumber(stream[1]), stream[2], stream[3],
  tonumber(redis.call('HGET', run, 'epoch') or '0'),
  oldest and oldest[1] or false, entries,
}
