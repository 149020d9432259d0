"""The module that users of angle_emb start: python -m angle.angle_trainer."""

from angle.compat.angle_trainer import main

if __name__ == "__main__":
    main()
