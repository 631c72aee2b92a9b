-- What the chat's scripts share. turn: the hash of the session's turn.
local function clock()
  local now = redis.call('TIME')
  return tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
end

local function keep(retention, ...)
  for _, name in ipairs({...}) do
    redis.call('PEXPIRE', name, retention)
  end
end

--#include largest

-- Append a batch to one of the session's streams; nothing if somebody has closed it.
local function append(meta, log, keys, channel, key, count, payload, retention)
  redis.call('HSETNX', meta, 'end', 0)
  redis.call('HSETNX', meta, 'type', 'application/json')
  local stream = redis.call('HMGET', meta, 'end', 'closed', 'largest')
  local offset = tonumber(stream[1])
  if stream[2] or count == 0 then
    return offset
  end
  local id = string.format('%d-%d', offset + count, count)
  redis.call('XADD', log, id, 'd', payload)
  redis.call('HSET', meta, 'end', offset + count)
  count_largest(meta, offset, stream[3], payload)
  redis.call('SADD', keys, key)
  local margin = math.ceil(retention / 20)
  keep(retention + margin, meta, log, keys)
  redis.call('SPUBLISH', channel, 'e' .. id .. '\n' .. payload)
  return offset + count
end

-- A request as it is kept: three lines, then JSON.
local function parse(request)
  return string.match(request, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$')
end

-- What the session's last turns have answered, by name: 'm' and the id of a message, 't' and the
-- Celery id of a task. An entry is three lines: name, reply, where its turn starts.
local function answered_before(answered, name)
  for _, entry in ipairs(redis.call('LRANGE', answered, 0, -1)) do
    local its_name, reply, start = string.match(entry, '^([^\n]*)\n([^\n]*)\n(.*)$')
    if its_name == name then
      return reply, tonumber(start)
    end
  end
end

local function begin_turn(turn, id, task, request, start, lease)
  local agent, reply, message = parse(request)
  redis.call('HDEL', turn, 'attempt', 'stop', 'base', 'resent')
  redis.call('HSET', turn, 'turn', id, 'task', task, 'agent', agent, 'reply', reply, 'message',
    message, 'request', request, 'start', start, 'state', 'sent', 'number', 0, 'lease', lease)
end
