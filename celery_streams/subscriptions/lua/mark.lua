#!lua
-- Note how far streams have got, and wake somebody if there is something to do.
--#include ./state
local wake, holder, first = ARGV[1], ARGV[2], 3
-- Then for each stream: path, tail (-1: it does not exist), identity (empty: not known), what to
-- link it as if it is not linked ('g', 'e'; empty: not at all; '?': then say so), and where it is
-- acked then.
if not state.exists then
  return {'MISSING', -1, 0, '', '', {}}
end
local verdict = 'OK'
for at = first, #ARGV, 5 do
  local path, tail, identity, kind = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3]
  local link = link_of(path)
  if kind == '?' then
    verdict, kind = link and verdict or 'UNLINKED', link and link.kind or ''
  end
  if tail < 0 then
    if link and link.kind == 'g' then
      forget(path)
    elseif link then
      link.acked, link.identity = 0, ''
      keep(path, link)
      redis.call('HDEL', tails, path)
      redis.call('ZREM', pending, path)
    elseif kind ~= '' then
      keep(path, {kind = kind, acked = 0, identity = ''})
    end
  elseif link or kind ~= '' then
    local before = tonumber(redis.call('HGET', tails, path) or 0)
    if not link then
      link = {kind = kind, acked = math.min(tail, tonumber(ARGV[at + 4])), identity = identity}
      keep(path, link)
    elseif identity ~= '' and link.identity ~= identity then
      if link.identity ~= '' then
        link.acked, before = 0, 0 -- another stream of that name: none of it was processed
      end
      link.identity = identity
      keep(path, link)
    end
    if kind ~= '' and kind ~= link.kind and link.kind ~= 'b' then
      link.kind = 'b'
      keep(path, link)
    end
    tail = math.max(tail, before)
    redis.call('HSET', tails, path, string.format('%d', tail))
    judge(path, link, tail)
  end
  if kind == 'e' then
    redis.call('SADD', explicit, path)
  end
end
return answer(verdict, proceed(wake, holder))
