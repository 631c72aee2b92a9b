-- The fence. A fence hash holds the attempt that may write (`attempt`), that attempt's
-- generation, its number (`epoch`, from 1), and `a/<attempt>` for each attempt that ever held
-- it. seen: HMGET of attempt, generation, epoch, a/<attempt>.
-- Returns the epoch of `attempt` and whether it is newly claimed, or nil if it is fenced out.
local function judge(seen, attempt, generation, redelivered)
  local epoch = tonumber(seen[3] or '0')
  if seen[1] == attempt then
    return epoch, false
  end
  if seen[4] then
    return nil -- held the fence once; somebody has taken it since
  end
  if seen[1] then
    local newest = tonumber(seen[2])
    if generation < newest or (generation == newest and not redelivered) then
      return nil
    end
  end
  return epoch + 1, true
end

local function take(fence, attempt, generation, epoch, redelivered)
  redis.call('HSET', fence, 'attempt', attempt, 'generation', generation, 'epoch', epoch,
    'a/' .. attempt, epoch, 'redelivered', redelivered and 1 or 0)
end
