#!lua flags=no-writes
-- Entries that hold chunks from an offset on, and the head at the same moment.
local meta, log, run = KEYS[1], KEYS[2], KEYS[3]
local offset, limit, enough = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local few, small = tonumber(ARGV[4]), tonumber(ARGV[5])
-- limit: entries. enough: bytes of payload after which no further entries are added.
-- few: at most so many entries where none of the log has more than `small` bytes: the client gets
-- the others of the page itself.
-- Returns {run's state} (no such stream), or {end, closed, type, epoch, first entry's id, identity, ttl,
-- expires, deleted, run's state, index, payloads, largest}: index is one string of "end-count size " for
-- each entry, payloads are all in one string. A client takes that apart many times faster than
-- nested replies.
local stream = redis.call('HMGET', meta, 'end', 'closed', 'type', 'id', 'ttl', 'expires', 'deleted',
  'largest')
local function run_state(record)
  local state, attempt, lease, suspended = record[2], record[3], record[4], record[5]
  if state or not attempt then
    return state or 'PENDING'
  end
  if suspended == attempt then
    return 'RETRY'
  elseif not lease then
    return 'STARTED' -- it has only closed a stream so far
  end
  local now = redis.call('TIME')
  now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
  return tonumber(lease) > now and 'STARTED' or 'STALLED'
end

local record = redis.call('HMGET', run, 'epoch', 'state', 'attempt', 'lease', 'suspended')
if not stream[1] then
  return {run_state(record)}
end
local index, payloads, size, found = {}, {}, 0, 0
local largest = stream[8] and tonumber(stream[8])
if largest and largest <= small then
  limit = math.min(limit, few)
end
if limit > 0 and offset < tonumber(stream[1]) then
  local from = string.format('%d-0', offset + 1)
  local step = 16
  while found < limit and size < enough do
    local page = redis.call('XRANGE', log, from, '+', 'COUNT', math.min(step, limit - found))
    for _, entry in ipairs(page) do
      local payload = entry[2][2]
      found = found + 1
      index[found] = entry[1] .. ' ' .. #payload
      payloads[found] = payload
      size = size + #payload
      if size >= enough then
        break
      end
    end
    if #page < step or found >= limit then
      break
    end
    from = '(' .. page[#page][1]
    step = math.min(step * 2, 128) -- what one XRANGE brings is not bounded by its bytes
  end
end
local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
return {
  tonumber(stream[1]), stream[2], stream[3], tonumber(record[1] or '0'),
  oldest and oldest[1] or false, stream[4], stream[5], stream[6], stream[7], run_state(record),
  table.concat(index, ' '), table.concat(payloads), largest or false,
}
