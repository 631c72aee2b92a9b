#!lua
-- A wake could not be delivered, or processed: when to try the next time.
--#include ./state
local wake, generation, first, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local jitter = tonumber(ARGV[5])
-- first, most: milliseconds of the first pause and of the longest. jitter: what to multiply by.
-- The wake stays until then, so that whoever got it after all may still say so.
if not state.exists then
  return {'MISSING', -1, 0, '', '', {}}
end
expire()
if not state.phase or state.wake ~= wake or state.generation ~= generation then
  return answer('FENCED', false)
end
local pause = math.floor(math.min(most, first * 2 ^ math.min(state.attempts, 30)) * jitter)
state.attempts, state.next = state.attempts + 1, now + pause
redis.call('HSET', record, 'attempts', state.attempts, 'next', string.format('%d', state.next))
hold(state.phase, state.holder, state.next)
return answer('OK', false)
