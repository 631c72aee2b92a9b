-- A subscription's state, for the scripts that change it.
--
-- record: hash, the configuration and what is under way:
--   generation    counts wakes; never goes back, not even when the subscription is deleted
--   wake, phase   the current wake: 'sent' (nobody has taken it yet) or 'held' (a lease); none: idle
--   holder        who holds the lease
--   until         when lease or dispatch run out, Unix milliseconds; '0': never
--   attempts, next   failed deliveries in a row, and when the next one is due
-- links: hash, path to 'type:acked:identity', type 'g' (glob), 'e' (explicit) or 'b' (both)
-- tails: hash, path to the end of the stream as last heard of
-- pending: sorted set, paths with a tail beyond acked, by the time they got it
-- explicit: set, the paths with an explicit link
local record, links, tails, pending, explicit = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

--- Milliseconds within which whoever got a wake from a script has to have passed it on.
local DISPATCH = 5000
--- Streams of one wake.
local MOST = 1000

local function clock()
  local now = redis.call('TIME')
  return tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
end

local now = clock()
local known = redis.call('HMGET', record, 'type', 'ttl', 'generation', 'wake', 'phase', 'holder',
  'until', 'attempts', 'next', 'deleted')
local state = {
  type = known[1], ttl = tonumber(known[2] or 0), generation = tonumber(known[3] or 0),
  wake = known[4], phase = known[5], holder = known[6], till = tonumber(known[7] or 0),
  attempts = tonumber(known[8] or 0), next = tonumber(known[9] or 0),
  exists = known[1] and not known[10],
}

local function link_of(path)
  local text = redis.call('HGET', links, path)
  if not text then
    return nil
  end
  local kind, acked, identity = string.match(text, '^(%a):(%d+):(.*)$')
  return {kind = kind, acked = tonumber(acked), identity = identity}
end

local function keep(path, link)
  redis.call('HSET', links, path, string.format('%s:%d:%s', link.kind, link.acked, link.identity))
end

local function forget(path)
  redis.call('HDEL', links, path)
  redis.call('HDEL', tails, path)
  redis.call('ZREM', pending, path)
end

--- Whether there is something to process in a stream, noted in `pending`.
local function judge(path, link, tail)
  if tail > link.acked then
    redis.call('ZADD', pending, 'NX', now, path)
  else
    redis.call('ZREM', pending, path)
  end
end

local function idle()
  redis.call('HDEL', record, 'wake', 'phase', 'holder', 'until')
  state.wake, state.phase, state.holder, state.till = false, false, false, 0
end

local function settled()
  redis.call('HDEL', record, 'attempts', 'next')
  state.attempts, state.next = 0, 0
end

--- A lease that has run out is nobody's.
local function expire()
  if state.phase == 'held' and state.till <= now then
    idle()
  end
end

local function hold(phase, holder, till)
  redis.call('HSET', record, 'phase', phase, 'holder', holder, 'until', string.format('%d', till))
  state.phase, state.holder, state.till = phase, holder, till
end

--- The next wake. What is sent is not held yet, except for webhooks: there that is the same.
local function issue(wake, holder)
  state.generation, state.wake = state.generation + 1, wake
  redis.call('HSET', record, 'generation', string.format('%d', state.generation), 'wake', wake)
  if state.type == 'webhook' then
    hold('held', holder, now + state.ttl)
  else
    hold('sent', holder, now + DISPATCH)
  end
end

--- The streams with pending work: path, type, acked, tail, one after the other.
local function snapshot()
  local streams = {}
  for _, path in ipairs(redis.call('ZRANGE', pending, 0, MOST - 1)) do
    local link, tail = link_of(path), redis.call('HGET', tails, path)
    if link and tail then
      streams[#streams + 1] = path
      streams[#streams + 1] = link.kind
      streams[#streams + 1] = string.format('%d', link.acked)
      streams[#streams + 1] = tail
    end
  end
  return streams
end

local function is_pending()
  return redis.call('EXISTS', pending) == 1
end

--- Wake somebody if that is due. Returns whether the caller has to deliver this wake; one that
--- cannot gives no `wake`.
local function proceed(wake, holder)
  expire()
  if wake == '' then
    return false
  end
  if state.phase == 'sent' then
    if state.till == 0 or state.till > now then
      return false
    end
    if is_pending() then
      hold('sent', holder, now + DISPATCH) -- again: it may never have arrived
      return true
    end
    idle()
    return false
  end
  if state.phase or state.next > now or not is_pending() then
    return false
  end
  issue(wake, holder)
  return true
end

--- Milliseconds until proceed() may have something to do; -1: nothing, before something happens.
local function due()
  if state.phase then
    return state.till == 0 and -1 or math.max(0, state.till - now)
  end
  return is_pending() and math.max(0, state.next - now) or -1
end

--- What every script answers: a verdict, milliseconds as of due(), the generation, the wake's id
--- (empty: none), who holds it, and the streams if the caller is to deliver that wake.
local function answer(verdict, deliver)
  return {verdict, due(), state.generation, state.wake or '', state.holder or '',
    deliver and snapshot() or {}}
end
