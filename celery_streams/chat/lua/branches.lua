#!lua flags=no-writes
-- The session's branches, the last one first: id, when it was left (ms), what is listed of it.
local branches, branch = KEYS[1], KEYS[2]

local found = {}
local names = redis.call('ZREVRANGE', branches, 0, -1, 'WITHSCORES')
for place = 1, #names, 2 do
  local about = redis.call('HGET', branch, names[place] .. '/about')
  if about then
    found[#found + 1] = {names[place], names[place + 1], about}
  end
end
return found
