#!lua
-- A wake was passed on to somebody who will process it, or to where they take it from.
--#include ./state
local wake, generation, again = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local back = ARGV[4] == '1'
-- again: milliseconds after which it is passed on once more if nobody takes it; 0: never.
-- back: whoever holds it does the passing on, and holds it no longer.
if not state.exists then
  return {'MISSING', -1, 0, '', '', {}}
end
if state.wake == wake and state.generation == generation then
  if state.type ~= 'celery' then
    settled() -- that was all there is to fail; a task's failures count until one succeeds
  end
  if state.phase == 'sent' or (back and state.phase == 'held') then
    hold('sent', '', again == 0 and 0 or now + again)
  end
end
return answer('OK', false)
