#!lua
-- Remove explicit links; what a pattern matches stays linked by that.
--#include ./state
-- ARGV: for each stream its path.
if not state.exists then
  return {'MISSING', -1, 0, '', '', {}}
end
for _, path in ipairs(ARGV) do
  local link = link_of(path)
  if link and link.kind == 'b' then
    link.kind = 'g'
    keep(path, link)
  elseif link and link.kind == 'e' then
    forget(path)
  end
  redis.call('SREM', explicit, path)
end
return answer('OK', false)
