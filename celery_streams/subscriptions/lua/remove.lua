#!lua flags=allow-oom
-- Delete a subscription. Its generation stays for a while: none is given out twice.
--#include ./state
local kept = ARGV[1]
if not state.exists then
  return {'MISSING', -1, 0, '', '', {}}
end
redis.call('DEL', record, links, tails, pending, explicit)
redis.call('HSET', record, 'deleted', 1, 'generation', string.format('%d', state.generation))
redis.call('PEXPIRE', record, kept)
return {'OK', -1, state.generation, '', '', {}}
