#!lua
-- Take the lease, for one worker.
--#include ./state
local holder, wake, kind = ARGV[1], ARGV[2], ARGV[3]
local wanted_wake, wanted_generation = ARGV[4], ARGV[5]
-- wake: the id of a wake that nobody was told of, should it need one. kind: the type that the
-- subscription must be. wanted_*: the wake it must be; empty: any.
if not state.exists then
  return {'MISSING', -1, 0, '', '', {}}
end
if state.type ~= kind then
  return answer('TYPE', false)
end
expire()
if wanted_wake ~= '' and (state.wake ~= wanted_wake
    or state.generation ~= tonumber(wanted_generation)) then
  return answer('FENCED', false)
end
if state.phase == 'held' then
  return answer('CLAIMED', false)
end
if not is_pending() then
  idle()
  return answer('NOTHING', false)
end
if not state.phase then
  issue(wake, holder)
end
hold('held', holder, now + state.ttl)
return answer('OK', true)
