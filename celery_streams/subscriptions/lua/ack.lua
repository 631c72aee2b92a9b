#!lua
-- Note what was processed. Done: give up the lease, and wake again if there is more.
--#include ./state
local wake, generation, done = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local next_wake, holder, first = ARGV[4], ARGV[5], 6
-- Then for each ack: path, offset, the stream's tail (-1: not known).
if not state.exists then
  return {'MISSING', -1, 0, '', '', {}}
end
expire()
if state.phase ~= 'held' or state.wake ~= wake or state.generation ~= generation then
  return answer('FENCED', false)
end
local acks = {}
for at = first, #ARGV, 3 do
  local path, offset, tail = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local link = link_of(path)
  if not link then
    return answer('UNLINKED', false)
  end
  tail = math.max(tail, tonumber(redis.call('HGET', tails, path) or 0))
  if offset > tail then
    return answer('OFFSET', false)
  end
  acks[#acks + 1] = {path, offset, tail}
end
for _, ack in ipairs(acks) do
  local path, offset, tail = ack[1], ack[2], ack[3]
  local link = link_of(path)
  if offset > link.acked then
    link.acked = offset
    keep(path, link)
  end
  redis.call('HSET', tails, path, string.format('%d', tail))
  judge(path, link, tail)
end
if not done then
  settled()
  hold('held', state.holder, now + state.ttl)
  return answer('OK', false)
end
idle()
settled()
return answer('OK', proceed(next_wake, holder))
